"""Reading the program that the compiler makes of a step."""
