"""What each agent CLI is and how it speaks: command lines, events, failures, reset times."""
