"""How alembic runs a migration: on the connection and in the transaction that `migrate` opened."""

from alembic import context

from regtrain.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
