"""Image recognition transfer: logistic regression on frozen features, by the protocol of appendix D.1."""
