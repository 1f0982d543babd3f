"""Parts of ZS3Net that are no method: the generators' loss and their input."""
