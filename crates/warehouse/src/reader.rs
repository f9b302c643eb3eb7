//! Answers readers (`contract::query::Reader`) from the engine.
