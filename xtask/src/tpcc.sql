-- Tables and transactions like those of TPC-C, scaled down: 4 warehouses of 10 districts with 300 customers each, 5000 items. Nothing
-- is ordered or paid yet, so that what clients do afterwards can be checked against what they know. Statements end with a
-- semicolon and an empty line, as `postgres --single -j` reads them.

CREATE TABLE warehouse (w_id int PRIMARY KEY, w_name text NOT NULL, w_ytd bigint NOT NULL) WITH (fillfactor = 20);

CREATE TABLE district (d_w_id int, d_id int, d_name text NOT NULL, d_ytd bigint NOT NULL, d_next_o_id int NOT NULL,
    PRIMARY KEY (d_w_id, d_id)) WITH (fillfactor = 20);

CREATE TABLE customer (c_w_id int, c_d_id int, c_id int, c_last text NOT NULL, c_data text NOT NULL, c_balance bigint NOT NULL,
    c_payment_cnt int NOT NULL, PRIMARY KEY (c_w_id, c_d_id, c_id)) WITH (fillfactor = 90);

CREATE TABLE history (h_w_id int, h_d_id int, h_c_id int, h_amount int NOT NULL, h_date timestamp NOT NULL);

CREATE TABLE item (i_id int PRIMARY KEY, i_name text NOT NULL, i_price int NOT NULL);

CREATE TABLE stock (s_w_id int, s_i_id int, s_data text NOT NULL, s_quantity int NOT NULL, s_ytd bigint NOT NULL,
    s_order_cnt int NOT NULL, PRIMARY KEY (s_w_id, s_i_id)) WITH (fillfactor = 90);

CREATE TABLE orders (o_w_id int, o_d_id int, o_id int, o_c_id int NOT NULL, o_ol_cnt int NOT NULL, o_entry_d timestamp NOT NULL,
    PRIMARY KEY (o_w_id, o_d_id, o_id));

CREATE INDEX orders_of_customer ON orders (o_w_id, o_d_id, o_c_id, o_id);

CREATE TABLE order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int NOT NULL, ol_quantity int NOT NULL,
    ol_amount bigint NOT NULL, ol_dist_info text NOT NULL, PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number));

INSERT INTO warehouse SELECT w, 'warehouse ' || w, 0 FROM generate_series(1, 4) w;

INSERT INTO district SELECT w, d, 'district ' || d, 0, 1 FROM generate_series(1, 4) w, generate_series(1, 10) d;

INSERT INTO customer SELECT w, d, c, 'customer ' || c, repeat(md5(format('%s %s %s', w, d, c)), 12), 0, 0
    FROM generate_series(1, 4) w, generate_series(1, 10) d, generate_series(1, 300) c;

INSERT INTO item SELECT i, 'item ' || md5(i::text), 100 + i * 7919 % 9900 FROM generate_series(1, 5000) i;

INSERT INTO stock SELECT w, i, repeat(md5(format('%s %s', w, i)), 8), 10 + i * 104729 % 90, 0, 0
    FROM generate_series(1, 4) w, generate_series(1, 5000) i;

CREATE FUNCTION new_order(w int, d int, c int, items int[], quantities int[]) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    o int;
    price int;
BEGIN
    UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = w AND d_id = d RETURNING d_next_o_id - 1 INTO STRICT o;
    INSERT INTO orders VALUES (w, d, o, c, array_length(items, 1), now());
    FOR n IN 1 .. array_length(items, 1) LOOP
        SELECT i_price INTO STRICT price FROM item WHERE i_id = items[n];
        UPDATE stock SET s_ytd = s_ytd + quantities[n], s_order_cnt = s_order_cnt + 1,
            s_quantity = s_quantity - quantities[n] + CASE WHEN s_quantity >= quantities[n] + 10 THEN 0 ELSE 91 END
            WHERE s_w_id = w AND s_i_id = items[n];
        INSERT INTO order_line VALUES (w, d, o, n, items[n], quantities[n], price * quantities[n], 'from district ' || d);
    END LOOP;
    RETURN o;
END $$;

CREATE FUNCTION payment(w int, d int, c int, amount int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    UPDATE customer SET c_balance = c_balance - amount, c_payment_cnt = c_payment_cnt + 1
        WHERE c_w_id = w AND c_d_id = d AND c_id = c;
    UPDATE district SET d_ytd = d_ytd + amount WHERE d_w_id = w AND d_id = d;
    UPDATE warehouse SET w_ytd = w_ytd + amount WHERE w_id = w;
    INSERT INTO history VALUES (w, d, c, amount, now());
    RETURN amount;
END $$;

CREATE FUNCTION order_status(w int, d int, c int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    o orders;
    lines int;
BEGIN
    PERFORM c_balance FROM customer WHERE c_w_id = w AND c_d_id = d AND c_id = c;
    SELECT * INTO o FROM orders WHERE o_w_id = w AND o_d_id = d AND o_c_id = c ORDER BY o_id DESC LIMIT 1;
    IF NOT FOUND THEN
        RETURN 'none';
    END IF;
    SELECT count(*) INTO lines FROM order_line WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o.o_id;
    RETURN CASE lines WHEN o.o_ol_cnt THEN 'whole' ELSE format('%s lines of %s', lines, o.o_ol_cnt) END;
END $$;

-- What has to hold whatever was done; a row for everything that does not.
CREATE FUNCTION inconsistencies() RETURNS SETOF text LANGUAGE sql AS $$
    SELECT 'customers paid ' || c || ', warehouses have ' || w || ', districts ' || d || ', the history ' || h
        FROM (SELECT -sum(c_balance) AS c FROM customer) c, (SELECT sum(w_ytd) AS w FROM warehouse) w,
            (SELECT sum(d_ytd) AS d FROM district) d, (SELECT coalesce(sum(h_amount), 0) AS h FROM history) h
        WHERE NOT (c = w AND w = d AND d = h)
    UNION ALL
    SELECT 'warehouse ' || w_id || ' and its districts differ' FROM warehouse
        WHERE w_ytd <> (SELECT sum(d_ytd) FROM district WHERE d_w_id = w_id)
    UNION ALL
    SELECT format('district %s/%s would have %s orders, and has %s', d_w_id, d_id, d_next_o_id - 1, count(o_id))
        FROM district LEFT JOIN orders ON o_w_id = d_w_id AND o_d_id = d_id GROUP BY d_w_id, d_id, d_next_o_id
        HAVING count(o_id) <> d_next_o_id - 1 OR coalesce(max(o_id), 0) <> d_next_o_id - 1
    UNION ALL
    SELECT format('orders have %s lines, of which there are %s, and stock knows %s', o, l, s)
        FROM (SELECT coalesce(sum(o_ol_cnt), 0) AS o FROM orders) o, (SELECT count(*) AS l FROM order_line) l,
            (SELECT sum(s_order_cnt) AS s FROM stock) s
        WHERE NOT (o = l AND l = s)
    UNION ALL
    SELECT format('%s pieces were ordered, and %s left the stock', l, s)
        FROM (SELECT coalesce(sum(ol_quantity), 0) AS l FROM order_line) l, (SELECT sum(s_ytd) AS s FROM stock) s WHERE l <> s;
$$;

VACUUM FREEZE ANALYZE;

