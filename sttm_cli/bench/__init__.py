"""Speed and accuracy, measured on this machine; never imported by the rest."""
