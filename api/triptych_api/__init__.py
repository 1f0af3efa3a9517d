"""The HTTP front: `triptych api`. OpenAI's images, jobs and A1111's paths over the client library; no Triton, no models here."""
