//! What is known of a client, without a client.
