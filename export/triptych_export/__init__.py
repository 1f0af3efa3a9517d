"""From a diffusers folder to something Triton can serve. Runs once, with torch and diffusers; nothing served imports it."""
