"""Files of networks, written and read: model, pruned network, ONNX."""
