-- name: customer joins
-- weight: 1
-- description: Someone opens a customer file.
--
-- r1 first name, r2 last name, r3 city, r4 segment. No e-mail or phone yet: so no two are ever the same.

INSERT INTO operational.customers (full_name, city, segment)
SELECT (ARRAY['Wanjiru', 'Achieng', 'Njeri', 'Chebet', 'Mwende', 'Halima', 'Kamau', 'Otieno', 'Kiprop', 'Mutua', 'Juma', 'Brian'])
           [1 + floor(:r1 * 12)::integer] || ' ' ||
       (ARRAY['Mwangi', 'Njoroge', 'Odhiambo', 'Wekesa', 'Musyoka', 'Cheruiyot', 'Koech', 'Abdi', 'Maina', 'Okoth', 'Mugo', 'Salim'])
           [1 + floor(:r2 * 12)::integer],
       (ARRAY['Nairobi', 'Nairobi', 'Nairobi', 'Mombasa', 'Kisumu', 'Nakuru', 'Eldoret', 'Thika'])[1 + floor(:r3 * 8)::integer],
       CASE WHEN :r4 < 0.78 THEN 'retail' WHEN :r4 < 0.96 THEN 'sme' ELSE 'corporate' END
RETURNING customer_id;
