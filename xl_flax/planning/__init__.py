"""What a run will cost, read from the program that the compiler makes of its step."""
