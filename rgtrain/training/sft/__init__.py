"""Supervised fine-tuning on right answers, through verl's SFT trainer."""
