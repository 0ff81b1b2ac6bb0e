"""The main job: budget in, measured artifact out."""
