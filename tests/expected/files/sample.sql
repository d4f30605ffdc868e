CREATE TABLE sighting (
    id      INTEGER PRIMARY KEY,
    species TEXT NOT NULL,
    seen_at TIMESTAMP NOT NULL,
    count   INTEGER CHECK (count > 0)
);

INSERT INTO sighting (species, seen_at, count) VALUES ('dunlin', '2026-01-04 09:30', 240);

SELECT species, SUM(count) AS total
FROM sighting
WHERE seen_at >= '2026-01-01'
GROUP BY species
ORDER BY total DESC
LIMIT 10;
