"""The web page: `triptych ui`. Plain logic in small files; only `page`, `panels` and `app` know Gradio."""
