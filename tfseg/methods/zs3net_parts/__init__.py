"""Parts of ZS3Net that are no method: layouts, draws, generators, and the features they make."""
