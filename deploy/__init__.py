"""What is needed to install Weft on a cluster, and the script that renders the derived files."""
