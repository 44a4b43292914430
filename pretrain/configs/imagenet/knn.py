"""kNN on ImageNet as the authors' main_knn.py has it (PROTOCOLS 3.1).  make knn PROFILE=imagenet"""

evaluation = dict(
    images=dict(name="imagenet", root="."),
    size=224,
    resize=(256, 256),  # exactly, so the aspect ratio is lost
    interpolation="bilinear",
    k=200,
    temperature=0.2,
    batch_size=256,
    workers=8,
)
