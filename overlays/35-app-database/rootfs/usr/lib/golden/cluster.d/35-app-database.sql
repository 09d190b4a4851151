-- The owner of the tables runs migrations and nothing else; the application reads and writes rows.
CREATE ROLE app_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5;

CREATE ROLE app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- A migration finds a connection also when the workers have taken all they can.
GRANT pg_use_reserved_connections TO app_owner;

ALTER ROLE app SET statement_timeout = '10s';

ALTER ROLE app SET idle_in_transaction_session_timeout = '30s';

CREATE DATABASE app OWNER app_owner;

REVOKE ALL ON DATABASE app FROM PUBLIC;

GRANT CONNECT ON DATABASE app TO app;

