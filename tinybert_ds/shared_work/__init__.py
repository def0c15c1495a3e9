"""Work that processes share through directories alone, of one machine or of many, and take over from those that die."""
