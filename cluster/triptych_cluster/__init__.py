"""Many servers as one: Ray Serve places and keeps them, doors pass requests on by the work that waits."""
