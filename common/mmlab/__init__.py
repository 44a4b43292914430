"""What detection and segmentation share on mmdet and mmseg."""
