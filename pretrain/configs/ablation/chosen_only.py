"""The online network sees the chosen views alone (ours).  make pretrain METHOD=byol_gsg-chosen_only"""

model = dict(chosen_only=True)
