"""What people look at: the HTML report of a federation, grids and plots."""
