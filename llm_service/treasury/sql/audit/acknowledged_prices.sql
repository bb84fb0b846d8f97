-- How many attempts prices_agree ignores, because somebody has acknowledged that their model is priced differently.
SELECT count(*) AS attempts, array_agg(DISTINCT model ORDER BY model) AS models
FROM ({{differences}}) AS d
WHERE acknowledged
