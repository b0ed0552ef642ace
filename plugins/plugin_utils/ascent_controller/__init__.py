"""What only the controller does: reading recipes and catalogues, rendering, recording runs and reporting them."""
