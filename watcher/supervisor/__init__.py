"""Several workers and the listener under one roof: started, restarted, scaled and stopped."""
