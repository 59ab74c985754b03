"""Corrections of a pruned network with unlabelled training images."""
