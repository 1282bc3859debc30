"""One Gradio process over both consumers of the encoder, and the small trained family it starts with."""
