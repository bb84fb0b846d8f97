-- Holds, with the data that decide how they end. The other queries in this folder choose the holds.
SELECT h.call_id, h.attempt, h.model, h.amount_nano, a.expiry_policy, h.expires_at < clock_timestamp() AS expired,
       (SELECT r.rates FROM rate_cards r WHERE r.id = h.rate_card_id) AS rates, {{witnesses}}
FROM holds h JOIN agents a ON a.id = h.agent_id
