"""The book: its chapters, and the tools that execute, check, record and draw them."""
