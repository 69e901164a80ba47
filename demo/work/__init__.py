"""What visitors ask for, done; nothing here knows of Gradio."""
