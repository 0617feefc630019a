"""What is trained, how, and what a run leaves behind: the part of the project that teams edit."""
