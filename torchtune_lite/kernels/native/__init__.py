"""Loops in C++, built with the machine's own compiler when they are first wanted."""
