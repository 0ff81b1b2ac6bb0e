"""What a cut loses, and the cutting: calibration, sensitivity, surgery."""
