-- A witness of a stream that was left says whether the provider had sent more than was read of it.

ALTER TABLE witnesses ADD COLUMN unread boolean NOT NULL DEFAULT false;
