"""Semantic segmentation (paper, D.3): UPerNet on ADE20K, on mmseg."""
