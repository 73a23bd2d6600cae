"""What goes on beside the tasks themselves: the listener's services, which watch, count, tell and clean up."""
