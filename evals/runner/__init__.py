"""`vtprune eval`: questions asked under several configurations, kept in a folder, summed up."""
