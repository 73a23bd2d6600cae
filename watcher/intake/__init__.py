"""Where tasks come in from outside: each module here turns something foreign into a task in an inbox."""
