-- Nobody connects to a database without a right to it.
REVOKE ALL ON DATABASE postgres FROM PUBLIC;

REVOKE ALL ON DATABASE template1 FROM PUBLIC;

