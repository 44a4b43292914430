"""kNN on the embedded digits: 1,437 in the bank, 360 held out.  make knn"""

evaluation = dict(
    images=dict(name="digits", root="."),
    size=32,
    resize=None,
    k=20,
    temperature=0.1,
    batch_size=256,
    workers=0,
)
