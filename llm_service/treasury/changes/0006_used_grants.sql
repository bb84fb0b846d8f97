SELECT 1; -- To be written.
