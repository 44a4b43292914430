"""kNN on CIFAR-10 as lightly's benchmark has it (PROTOCOLS 2).  make knn PROFILE=cifar10"""

evaluation = dict(
    images=dict(name="cifar10", root="."),
    size=32,
    resize=None,
    k=200,
    temperature=0.1,
    batch_size=256,
    workers=2,
)
