"""What a training run needs beside the method: checks, resuming, recording, processes, graphs."""
