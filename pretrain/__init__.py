"""Pretraining: SimSiam and BYOL with Guided Stop-gradient, their standard evaluation, and the export."""
