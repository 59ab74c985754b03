"""What a training run needs beside the method: resuming, progress, locks, CUDA graphs."""
