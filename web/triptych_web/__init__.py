"""What the web page and the HTTP front share: how much one caller may ask for, what a request passes, a listening server."""
