"""What must stay as it is when the code is moved: weights to the bit, and run folders of today."""
