"""Progress reports, the watchdog and stop signals of a long job, shared by training, evaluation and export."""
