"""What SDXL's requests ask for: settings, conditioning, latents to start from, the refiner's turn."""
